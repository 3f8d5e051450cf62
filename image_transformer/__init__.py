"""Image Transformer (Parmar et al., ICML 2018) in JAX."""
