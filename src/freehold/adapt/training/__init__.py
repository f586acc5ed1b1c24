"""The training core: a family's own forward pass in torch, over packed weights, with low-rank adapters beside them."""
