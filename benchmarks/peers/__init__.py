"""embedkit beside its peers: the same texts, the same model, in turn, in one run."""
