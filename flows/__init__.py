"""What happens: the flows, and the spec, catalog and engine behind them."""
