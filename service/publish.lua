-- Publishes events, each to its channels under one id: idempotency, next id, history, PUBLISH of the
-- finished frame. Each has an outcome of its own; they share one look at the clock and the tails.
--
-- KEYS[1]  the clock: a hash; `id` is the last id given out, `born` the one from which this data
--          set vouches for completeness
-- KEYS[2+] for each channel two: its history, a stream, and its tail, a hash in which `id` is the id
--          of the last stored event and `ended` is set once the channel is finished; after them
--          the idempotency records
-- ARGV[1]  floor: the highest id the caller has seen
-- ARGV[2]  `born` of the data set that the caller follows, or ''
-- ARGV[3]  seconds that idempotency records live
-- ARGV[4]  how many channels there are
-- ARGV[5]  how many events there are
-- ARGV[6+] for each channel four:
--   1 its Redis pub/sub channel
--   2 how many events it keeps; 0 for none
--   3 for how many seconds
--   4 how many its tail lives
-- after them for each event nine:
--   1 the numbers of its channels, from 1, with spaces between
--   2 'store', 'live' (it is not stored), or 'end' (it is stored, and the last of its channels)
--   3 its name, or ''
--   4 what stands before the id line of the frame
--   5 what stands after it
--   6 seconds after which a replay skips it, or ''
--   7 the names of its channels, with commas between, if only streams with a grant for one may get
--     it; or ''
--   8 the number of its idempotency record among the keys, or ''
--   9 hash of all fields, for that record
-- Error: CHANGED, or what Redis says when it writes nothing at all, as out of memory.
-- Returns for each event its id, '=' and the id of the earlier call that had published it, or '-'
-- and an error: CONFLICT, ENDED <place of the channel>, or what Redis said.
--
-- Ids increase strictly over all channels, also when the machine's clock goes back; a floor more
-- than a day ahead of it is ignored, as it can only be a mistake.

local call = redis.call
local DAY = 86400000
local CHANNEL_ARGUMENTS, EVENT_ARGUMENTS = 4, 9

local function parse(id)
  local milliseconds, sequence = string.match(id or '', '^(%d+)-(%d+)$')
  return tonumber(milliseconds) or 0, tonumber(sequence) or 0
end

local function format(milliseconds, sequence)
  return string.format('%.0f-%.0f', milliseconds, sequence)
end

local function later(a, b)
  local a_ms, a_seq = parse(a)
  local b_ms, b_seq = parse(b)
  if a_ms > b_ms or (a_ms == b_ms and a_seq > b_seq) then return a end
  return b
end

local clock = call('HMGET', KEYS[1], 'id', 'born')
local before, born = clock[1], clock[2]
-- An old master that doesn't know yet that it is none any more would take what nobody will get.
if ARGV[2] ~= '' and born and born ~= ARGV[2] then return redis.error_reply('CHANGED') end

local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last, sequence = parse(before)
local floor, floor_sequence = parse(ARGV[1])
local behind = floor > last or (floor == last and floor_sequence > sequence)
if floor > now + DAY then behind = false end
if behind then last, sequence = floor, floor_sequence end

local reserved = false
local refusal -- what Redis says when it writes nothing at all, as out of memory

local function write_clock(...)
  local answer = redis.pcall('HSET', KEYS[1], ...)
  if type(answer) == 'table' then
    refusal = answer
    error(answer.err)
  end
end

-- The first id reserves one for each event that is left: the clock must never be behind what went out.
local function next_id(left)
  if now > last then
    last, sequence = now, 0
  else
    sequence = sequence + 1
  end
  local id = format(last, sequence)
  if not reserved then
    -- A new data set, or one that has lost what the caller saw: nothing before is vouched for.
    if not born or behind then born = id end
    write_clock('id', format(last, sequence + left - 1), 'born', born)
    reserved = true
  end
  return id
end

local channels = {}
for number = 1, tonumber(ARGV[4]) do
  local argument = 6 + (number - 1) * CHANNEL_ARGUMENTS
  channels[number] = {history = KEYS[2 * number], tail = KEYS[2 * number + 1],
    pubsub = ARGV[argument], keep = tonumber(ARGV[argument + 1]),
    seconds = ARGV[argument + 2], tail_seconds = ARGV[argument + 3]}
end

local lists = {} -- those of the events so far, by their numbers: most are the same

local function channels_of(numbers)
  local found = lists[numbers]
  if found then return found end
  found = {}
  for number in string.gmatch(numbers, '%d+') do
    local channel = channels[tonumber(number)]
    if not channel.known then
      local stored = call('HMGET', channel.tail, 'id', 'ended')
      channel.last, channel.ended, channel.known = stored[1], stored[2], true
    end
    found[#found + 1] = channel
  end
  lists[numbers] = found
  return found
end

-- The stored event before the next one: the tail knows it, else the history, else time proves that
-- there is none after the id returned. That is never beyond the clock, where a reader may have been
-- waiting since before a long silence.
local function previous(channel)
  if channel.last then return channel.last end
  local newest = call('XREVRANGE', channel.history, '+', '-', 'COUNT', 1)
  if newest[1] then return newest[1][1] end
  local forgotten = format(now - channel.tail_seconds * 1000, 0)
  if before and later(forgotten, before) == forgotten then forgotten = before end
  return later(born, forgotten)
end

local function store(channel, id, keep, name, frame, deadline, private)
  local prev = previous(channel)
  call('XADD', channel.history, 'MAXLEN', '~', keep, id, 'prev', prev, 'name', name,
    'frame', frame, 'deadline', deadline, 'private', private)
  channel.last, channel.stored = id, id
  return deadline ~= '' and prev .. '/' .. deadline or prev
end

-- `first` is the event's first argument, `left` how many events there are from it on.
local function publish(first, left)
  local numbers, kind, name, head, body, seconds, private, record, hash =
    unpack(ARGV, first, first + EVENT_ARGUMENTS - 1)
  record = KEYS[tonumber(record)]
  if record then
    local stored = call('HMGET', record, 'id', 'hash')
    if stored[1] and stored[2] ~= hash then return '-CONFLICT' end
    if stored[1] then return '=' .. stored[1] end
  end
  local to = channels_of(numbers)
  for place, channel in ipairs(to) do
    if channel.ended then return '-ENDED ' .. place - 1 end
  end
  local id = next_id(left)
  local frame = head .. 'id: ' .. id .. '\n' .. body
  local deadline = seconds ~= '' and string.format('%.0f', now + seconds * 1000) or ''
  local flags = private ~= '' and '!' .. private or ''
  for place, channel in ipairs(to) do
    -- A channel's end is always stored: those who come later must learn of it.
    local keep = kind == 'live' and 0 or math.max(channel.keep, kind == 'end' and 1 or 0)
    local link = '-'
    if keep > 0 then link = store(channel, id, keep, name, frame, deadline, private) end
    if kind == 'end' then channel.ended, channel.ends = id, id end
    -- Who has one copy must know that others are on the way.
    local more = place < #to and '+' or ''
    call('PUBLISH', channel.pubsub,
      '\255P1 ' .. id .. ' ' .. link .. more .. flags .. ' ' .. name .. '\n' .. frame)
  end
  if record then
    call('HSET', record, 'id', id, 'hash', hash)
    call('EXPIRE', record, ARGV[3])
  end
  return id
end

local outcomes = {}
local events = tonumber(ARGV[5])
for place = 1, events do
  local first = 6 + #channels * CHANNEL_ARGUMENTS + (place - 1) * EVENT_ARGUMENTS
  local done, outcome = pcall(publish, first, events - place + 1)
  if refusal then return refusal end
  if not done then outcome = '-' .. (type(outcome) == 'table' and outcome.err or outcome) end
  outcomes[place] = outcome
end
for _, channel in ipairs(channels) do
  if channel.stored then
    call('HSET', channel.tail, 'id', channel.stored)
    if channel.ends then call('HSET', channel.tail, 'ended', channel.ends) end
    call('EXPIRE', channel.history, channel.seconds)
    call('EXPIRE', channel.tail, channel.tail_seconds)
  end
end
return outcomes
