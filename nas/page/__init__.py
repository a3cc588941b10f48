"""What a study found, as data, as a page, as figures and as files."""
