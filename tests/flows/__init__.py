"""Mirror of flows/."""
