"""What stages work with: their events, where their outputs lie, unfinished work, the device."""
