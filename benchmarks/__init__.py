"""What this toolkit costs, measured beside what others or plainer code cost."""
