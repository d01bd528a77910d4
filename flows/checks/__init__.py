"""What a server measures of itself: facts are gathered at the edge, and judged by pure functions."""
