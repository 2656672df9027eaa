-- Called by: a drain, in every round. Locks: as commitcast.sequence, which see.
SELECT epoch, seq, published, term, sequenced FROM commitcast.sequence($1, $2, $3, $4, $5, $6)
