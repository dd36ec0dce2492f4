"""What must hold on a GPU: by make test-gpu; on a CPU, with all other tests, it is the tests that are tried."""
