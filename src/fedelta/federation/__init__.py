"""The round loop of the server, the client's part of a round, and what clients keep between rounds."""
