"""The results of a study as data, as a page, as figures and as files."""
