"""The table of samples and their photos: read, checked, downloaded."""
