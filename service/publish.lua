-- Publishes one event to its channels under one id: idempotency, next id, history, PUBLISH of the
-- finished frame. All or nothing.
--
-- KEYS[1]  the clock: a hash; `id` is the last id given out, `born` the one from which this data
--          set vouches for completeness
-- KEYS[2]  the idempotency record, or ''
-- KEYS[3+] for each channel two: its history, a stream, and its tail, a hash in which `id` is the
--          id of the last stored event and `ended` is set once the channel is finished
-- ARGV[1]  floor: the highest id the caller has seen
-- ARGV[2]  `born` of the data set that the caller follows, or ''
-- ARGV[3]  the event's name, or ''
-- ARGV[4]  what stands before the id line of the frame
-- ARGV[5]  what stands after it
-- ARGV[6]  seconds after which a replay skips the event, or ''
-- ARGV[7]  hash of all fields, for the idempotency record
-- ARGV[8]  seconds that the idempotency record lives
-- ARGV[9]  1 if this is the channels' last event, else 0
-- ARGV[10] the channels, with commas between, if only streams with a grant for one may get it; or ''
-- ARGV[11+] for each channel four: its Redis pub/sub channel, how many events it keeps (0: this one
--          is not stored), for how many seconds, and how many its tail lives
-- Returns the id and 1 if it is an earlier call's. Errors: CHANGED, CONFLICT, ENDED <place of the
-- channel>.
--
-- Ids increase strictly over all channels, also when the machine's clock goes back; a floor more
-- than a day ahead of it is ignored, as it can only be a mistake.

local DAY = 86400000

local function parse(id)
  local milliseconds, sequence = string.match(id or '', '^(%d+)-(%d+)$')
  return tonumber(milliseconds) or 0, tonumber(sequence) or 0
end

local function later(a, b)
  local a_ms, a_seq = parse(a)
  local b_ms, b_seq = parse(b)
  if a_ms > b_ms or (a_ms == b_ms and a_seq > b_seq) then return a end
  return b
end

local clock = redis.call('HMGET', KEYS[1], 'id', 'born')
-- An old master that doesn't know yet that it is none any more would take what nobody will get.
if ARGV[2] ~= '' and clock[2] and clock[2] ~= ARGV[2] then return redis.error_reply('CHANGED') end
if KEYS[2] ~= '' then
  local stored = redis.call('HMGET', KEYS[2], 'id', 'hash')
  if stored[1] and stored[2] ~= ARGV[7] then return redis.error_reply('CONFLICT') end
  if stored[1] then return {stored[1], 1} end
end
for i = 3, #KEYS, 2 do
  if redis.call('HEXISTS', KEYS[i + 1], 'ended') == 1 then
    return redis.error_reply('ENDED ' .. (i - 3) / 2)
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last, sequence = parse(clock[1])
local floor, floor_sequence = parse(ARGV[1])
local behind = floor > last or (floor == last and floor_sequence > sequence)
if floor > now + DAY then behind = false end
if behind then last, sequence = floor, floor_sequence end
if now > last then
  last, sequence = now, 0
else
  sequence = sequence + 1
end
local id = string.format('%.0f-%.0f', last, sequence)
redis.call('HSET', KEYS[1], 'id', id)
local born = clock[2]
if not born or behind then
  born = id -- a new data set, or one that has lost what the caller saw: nothing before is vouched for
  redis.call('HSET', KEYS[1], 'born', born)
end

-- The stored event before the next one: the tail knows it, else the history, else time proves that
-- there is none after the id returned. That is never beyond the clock, where a reader may have been
-- waiting since before a long silence.
local function previous(history, tail, tail_seconds)
  local stored = redis.call('HGET', tail, 'id')
  if stored then return stored end
  local newest = redis.call('XREVRANGE', history, '+', '-', 'COUNT', 1)
  if newest[1] then return newest[1][1] end
  local forgotten = string.format('%.0f-0', now - tail_seconds * 1000)
  if clock[1] and later(forgotten, clock[1]) == forgotten then forgotten = clock[1] end
  return later(born, forgotten)
end

local frame = ARGV[4] .. 'id: ' .. id .. '\n' .. ARGV[5]
local deadline = ARGV[6] ~= '' and string.format('%.0f', now + ARGV[6] * 1000) or ''
local flags = ARGV[10] ~= '' and '!' .. ARGV[10] or ''
for i = 11, #ARGV, 4 do
  local history, tail = KEYS[3 + (i - 11) / 2], KEYS[4 + (i - 11) / 2]
  local keep, seconds, tail_seconds = tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
  local prev = '-'
  if keep > 0 then
    prev = previous(history, tail, tail_seconds)
    redis.call('XADD', history, 'MAXLEN', '~', keep, id, 'prev', prev, 'name', ARGV[3],
      'frame', frame, 'deadline', deadline, 'private', ARGV[10])
    redis.call('EXPIRE', history, seconds)
    redis.call('HSET', tail, 'id', id)
    redis.call('EXPIRE', tail, tail_seconds)
    if deadline ~= '' then prev = prev .. '/' .. deadline end
  end
  if ARGV[9] == '1' then redis.call('HSET', tail, 'ended', id) end
  -- Who has one copy must know that others are on the way.
  local more = i + 4 <= #ARGV and '+' or ''
  redis.call('PUBLISH', ARGV[i],
    '\255P1 ' .. id .. ' ' .. prev .. more .. flags .. ' ' .. ARGV[3] .. '\n' .. frame)
end
if KEYS[2] ~= '' then
  redis.call('HSET', KEYS[2], 'id', id, 'hash', ARGV[7])
  redis.call('EXPIRE', KEYS[2], ARGV[8])
end
return {id, 0}
