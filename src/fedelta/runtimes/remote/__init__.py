"""Clients at sites that are reached by messages: what travels, what is known about each site, and the runtime."""
