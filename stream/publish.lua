#!lua
-- Appends one run of a topic's events to its Stream and announces it, atomically.
-- Called by: Redis.Publish (EVALSHA, many in one pipeline).
-- Locks: none; a script is alone.
-- Invariant: the Stream holds consecutive offsets as ids `<offset>-0`, and what it holds up to its last-generated-id
-- was taken in offset order. Nothing is announced that is not stored.
--
-- KEYS[1]  the Stream, and the name of the sharded channel
-- ARGV     1 first offset   2 last offset   3 '1': restart   4 '1': announce even what is there already
--          5 entries to keep   6 milliseconds to live   7 version and epoch   8 topic   9… frames, one an offset
-- Returns  {'A' | 'D' | 'G', next offset wanted}, or the error of the command that was refused.
--
-- Offsets are doubles here, exact up to 2^53: nothing larger may be computed. %.0f writes them without exponent.
-- The shebang has no flags: at maxmemory or on a replica Redis refuses the script before it has changed anything.
local key = KEYS[1]
local first, last = tonumber(ARGV[1]), tonumber(ARGV[2])
local announce = ARGV[4] == '1'
local FRAMES = 9

local function text(n) return string.format('%.0f', n) end

-- failed is the reply of a command if it is an error, with the command's name: Redis 7.0 does not say what it is that a
-- script's user may not do.
local function failed(command, reply)
  if type(reply) == 'table' and reply.err then
    reply.err = reply.err .. ' (' .. command .. ' by publish.lua)'
    return reply
  end
end

-- offset_of is the offset that a Stream id stands for, nil if the id is not one of ours.
local function offset_of(id)
  local offset = tonumber(string.match(id, '^(%d+)%-0$'))
  if offset and offset <= 9007199254740991 then return offset end
end

-- top is the last offset taken, or nil where any offset may come first. It is the last-generated-id, not the last
-- entry: after XDEL or XTRIM the two differ, every smaller XADD would fail, and what is missing cannot be served. Such
-- a Stream, one whose length tells of a hole or a stranger's entry, and a key of another type are dropped.
local top
local exists = redis.pcall('EXISTS', key)
local err = failed('EXISTS', exists)
if err then return err end
local stale = ARGV[3] == '1'
if not stale and exists == 1 then
  local info = redis.pcall('XINFO', 'STREAM', key)
  if not info.err then
    local named = {}
    for i = 1, #info, 2 do named[info[i]] = info[i + 1] end
    local head, tail = named['first-entry'], named['last-entry']
    if head and tail and tail[1] == named['last-generated-id'] then
      local low, high = offset_of(head[1]), offset_of(tail[1])
      if low and high and high - low + 1 == named['length'] then top = high end
    end
  elseif string.sub(info.err, 1, 9) ~= 'WRONGTYPE' then
    return failed('XINFO STREAM', info)
  end
  stale = not top
end
if stale then
  err = failed('UNLINK', redis.pcall('UNLINK', key))
  if err then return err end
end

if top and first > top + 1 then
  return {'G', text(top + 1)}
end

local outcome, start = 'A', first
if top and last <= top then
  if not announce then return {'D', text(top + 1)} end
  outcome = 'D'
else
  if top and first <= top then start = top + 1 end
  for offset = start, last do
    local frame = ARGV[FRAMES + (offset - first)]
    local id = text(offset) .. '-0'
    local ok
    if offset == last then
      ok = redis.pcall('XADD', key, 'MAXLEN', '~', ARGV[5], id, 'f', frame)
    else
      ok = redis.pcall('XADD', key, id, 'f', frame)
    end
    -- What was stored so far is not announced: the caller gets an error and repeats with announce.
    err = failed('XADD', ok)
    if err then return err end
  end
  err = failed('PEXPIRE', redis.pcall('PEXPIRE', key, ARGV[6]))
  if err then return err end
  top = last
end

if announce then start = first end
local header = ARGV[7] .. ' ' .. text(start) .. ' ' .. text(last) .. ' ' .. ARGV[8]
local message = header .. '\n' .. table.concat(ARGV, '\n', FRAMES + (start - first), FRAMES + (last - first))
err = failed('SPUBLISH', redis.pcall('SPUBLISH', key, message))
if err then return err end
return {outcome, text(top + 1)}
