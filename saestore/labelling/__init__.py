"""Where concept labels of positions come from: files of spans, words, boxes, masks and row numbers."""
