"use strict";
// Tables sort when a header is pressed: numbers as numbers, what is empty last.
document.querySelectorAll("table.sortable").forEach(function (table) {
  table.querySelectorAll("th").forEach(function (header, column) {
    header.addEventListener("click", function () {
      var down = header.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      var key = function (row) {
        var cell = row.cells[column];
        var value = cell.hasAttribute("data-value") ? cell.getAttribute("data-value") : cell.textContent;
        return cell.classList.contains("number") ? Number(value) : value;
      };
      var rows = Array.from(table.tBodies[0].rows);
      rows.sort(function (one, other) {
        var a = key(one), b = key(other);
        if (a === "" || b === "") { return (a === "") - (b === ""); }
        var order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return down ? -order : order;
      });
      rows.forEach(function (row) { table.tBodies[0].appendChild(row); });
    });
  });
});
// The numbers of a plot are saved from the block that holds them.
document.querySelectorAll("button[data-save]").forEach(function (button) {
  button.addEventListener("click", function () {
    var name = button.getAttribute("data-of"), kind = button.getAttribute("data-save");
    var content = document.getElementById(name).textContent;
    if (kind === "csv") {
      var columns = JSON.parse(content), names = Object.keys(columns);
      var quoted = function (value) {
        var shown = value === null ? "" : String(value);
        return /[",\r\n]/.test(shown) ? '"' + shown.replace(/"/g, '""') + '"' : shown;
      };
      var lines = [names.map(quoted).join(",")];
      for (var row = 0; row < columns[names[0]].length; row++) {
        lines.push(names.map(function (column) { return quoted(columns[column][row]); }).join(","));
      }
      content = lines.join("\n") + "\n";
    }
    var link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: kind === "csv" ? "text/csv" : "application/json" }));
    link.download = name + "." + kind;
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 1000);
  });
});
