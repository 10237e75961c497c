"""The stream of events, and the pub/sub channels of batches and devices."""
