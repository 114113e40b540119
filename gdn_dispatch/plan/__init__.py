"""Host arithmetic of a step: batches, groups, chunks and their layout. numpy only, no torch."""
