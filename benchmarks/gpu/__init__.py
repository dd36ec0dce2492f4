"""Speed, exactness and limits on one GPU, by whatever Python has torch and transformers: make bench-gpu."""
