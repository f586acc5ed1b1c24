"""What a model's config says: sizes, experts, latents, states and ropes, as both file formats state them."""
