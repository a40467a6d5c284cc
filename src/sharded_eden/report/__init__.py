"""`report`: data and access logs as one HTML file."""
