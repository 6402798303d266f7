"""One deployed run at the server: from a configuration to a finished run directory."""
