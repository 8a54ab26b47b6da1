"""Codes as what other libraries work with. Nothing here knows `Codes`, whose methods these are."""
