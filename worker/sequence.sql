-- Called by: the sequencer, for the partitions $1 of all drains that wait. Locks: as commitcast.sequence, which see.
SELECT partition, epoch, seq, published, term, sequenced, more FROM commitcast.sequence($1, $2, $3, $4, $5, $6)
