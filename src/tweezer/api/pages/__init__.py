"""The pages for browsers: an entry page, and the description of the API, both from files of this package."""
