"""Getting hard samples answered: ask cloudd when there is time, keep them on disk when there is not, never wait."""
