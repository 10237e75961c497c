"""The routes of batches and jobs."""
