"""How to reach things: clients, tunnels and shells as Prefect blocks."""
