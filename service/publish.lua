-- Publishes one event: gives it the next id and sends the finished frame. All or nothing.
--
-- KEYS[1]  the clock: a hash whose `id` is the last id given out, '<milliseconds>-<sequence>'
-- ARGV[1]  floor: the highest id the caller has seen, or ''
-- ARGV[2]  the event's name, or ''
-- ARGV[3]  what stands before the id line of the frame
-- ARGV[4]  what stands after it
-- ARGV[5+] the Redis pub/sub channels
-- Returns the id. Ids increase strictly over all channels, also when the clock of the machine
-- goes back; a floor more than a day ahead of it is ignored, as it can only be a mistake.

local DAY = 86400000

local function parse(id)
  local milliseconds, sequence = string.match(id or '', '^(%d+)-(%d+)$')
  return tonumber(milliseconds) or 0, tonumber(sequence) or 0
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last, sequence = parse(redis.call('HGET', KEYS[1], 'id'))
local floor, floor_sequence = parse(ARGV[1])
if floor <= now + DAY and (floor > last or (floor == last and floor_sequence > sequence)) then
  last, sequence = floor, floor_sequence
end
if now > last then
  last, sequence = now, 0
else
  sequence = sequence + 1
end

local id = string.format('%.0f-%.0f', last, sequence)
redis.call('HSET', KEYS[1], 'id', id)
local message = '\255P1 ' .. id .. ' ' .. ARGV[2] .. '\n'
  .. ARGV[3] .. 'id: ' .. id .. '\n' .. ARGV[4]
for i = 5, #ARGV do
  redis.call('PUBLISH', ARGV[i], message)
end
return id
