"""From sequences to databases. No torch here."""
