"""Mirror of blocks/."""
