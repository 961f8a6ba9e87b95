"""The layouts of other people's repositories, and what SAELens makes of them."""
