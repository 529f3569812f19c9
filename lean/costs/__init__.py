"""What serving itself costs, beside the peer that does the same: start-up, memory, CPU decode, measuring."""
