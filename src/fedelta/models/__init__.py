"""Models to tune: any Hugging Face classifier, and the small backbones that come with this package."""
