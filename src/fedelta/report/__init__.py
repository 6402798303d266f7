"""What people look at: the page about one or more runs, with its plots."""
