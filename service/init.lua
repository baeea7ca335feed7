-- What a connecting client establishes: that there is a clock, which Redis this is, and from which
-- id on its data vouches for completeness.
--
-- KEYS[1] the clock
-- ARGV[1] floor: the highest id the caller has seen
-- ARGV[2] the identity of this Redis: run_id and master_replid
-- ARGV[3] 1 if a restart of it loses nothing, and it is no promoted replica; else 0
-- ARGV[4] the identity of the Redis that the caller has followed before, or ''
-- Returns the clock's id and `born`. When the identity has changed and writes may be lost, or the
-- caller has seen an id above the clock, `born` is a new id: what was given out before may be
-- missing. So it is when others have come here before the caller, who got something since from the
-- Redis that it leaves now: what this one had before that is above their `born` and below what the
-- caller has seen. A clock without an identity was made by a publisher before anybody connected to listen:
-- it is taken as it is.

local DAY = 86400000

local function parse(id)
  local milliseconds, sequence = string.match(id or '', '^(%d+)-(%d+)$')
  return tonumber(milliseconds) or 0, tonumber(sequence) or 0
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local clock = redis.call('HMGET', KEYS[1], 'id', 'born', 'identity')
local last, sequence = parse(clock[1])
local floor, floor_sequence = parse(ARGV[1])
local behind = floor > last or (floor == last and floor_sequence > sequence)
if floor > now + DAY then behind = false end
if behind then last, sequence = floor, floor_sequence end
local born = clock[2]
local changed = clock[3] and clock[3] ~= ARGV[2]
local left = ARGV[4] ~= '' and ARGV[4] ~= ARGV[2] and ARGV[3] ~= '1'
if born and left then
  local born_ms, born_sequence = parse(born)
  left = floor > born_ms or (floor == born_ms and floor_sequence > born_sequence)
end
if not born or behind or left or (changed and ARGV[3] ~= '1') then
  if now > last then
    last, sequence = now, 0
  else
    sequence = sequence + 1
  end
  born = string.format('%.0f-%.0f', last, sequence)
end
local id = string.format('%.0f-%.0f', last, sequence)
redis.call('HSET', KEYS[1], 'id', id, 'born', born, 'identity', ARGV[2])
return {id, born}
