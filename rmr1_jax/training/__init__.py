"""What both training stages share, and their objectives."""
