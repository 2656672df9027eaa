#!lua flags=no-writes
-- Reads a run of a topic's events from its Stream.
-- Called by: Redis.Range (EVALSHA_RO: who may only read may call it).
-- Locks: none; a script is alone.
-- Invariant: what is returned has the offsets first, first+1, …: it ends before the first hole, and is empty if the
-- Stream does not hold the first one.
--
-- KEYS[1]  the Stream
-- ARGV     1 first offset   2 most frames   3 most bytes, but at least one frame
-- Returns  the frames.
--
-- It is a script, not a bare XRANGE, because XRANGE bounds entries and not bytes: 1,000 of the largest would be 256 MiB.
-- Entries are read a few at a time, so that little is read in vain.
local want, frames_max, bytes_max = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local frames, bytes, chunk = {}, 0, 8

while #frames < frames_max do
  local count = math.min(chunk, frames_max - #frames)
  local entries = redis.pcall('XRANGE', KEYS[1], string.format('%.0f-0', want), '+', 'COUNT', count)
  if entries.err then
    if string.sub(entries.err, 1, 9) == 'WRONGTYPE' then return {} end
    return entries
  end
  for _, entry in ipairs(entries) do
    local frame = entry[2][2]
    if entry[1] ~= string.format('%.0f-0', want) then return frames end
    if #frames > 0 and bytes + #frame > bytes_max then return frames end
    frames[#frames + 1] = frame
    bytes = bytes + #frame
    want = want + 1
  end
  if #entries < count then return frames end
  chunk = 32
end
return frames
