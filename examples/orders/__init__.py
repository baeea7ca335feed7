"""A Flask application beside Pushline."""
