"""What every route needs: envelope, bodies, limits, and the server."""
