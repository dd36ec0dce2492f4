"""The backend that runs models by the code of the transformers library."""
