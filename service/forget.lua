-- Forgets a channel's history, and that it is finished. The id of its last event stays, so that a
-- client that hadn't got all of it can be told.
--
-- KEYS[1] the clock
-- KEYS[2] the channel's history, a stream; KEYS[3] its tail, a hash
-- ARGV[1] the channel's Redis pub/sub channel
-- Workers are told: what they have in memory up to this id is forgotten too.
-- Returns 1 if there was any history or end, else 0.

local clock = redis.call('HGET', KEYS[1], 'id') or '0-0'
local forgotten = redis.call('DEL', KEYS[2]) + redis.call('HDEL', KEYS[3], 'ended')
if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('HSET', KEYS[3], 'forgotten', clock) end
redis.call('PUBLISH', ARGV[1], '\255P1 ' .. clock .. ' - $forget\n\n\n')
return forgotten > 0 and 1 or 0
