"""embedkit: exact embeddings of tables of texts from frozen transformer encoders."""
