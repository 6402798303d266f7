"""The report: an HTML page with plots about one or more runs."""
