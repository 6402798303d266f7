"""What a run is for: adapters on disk, and predictions."""
