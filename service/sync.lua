-- Sends a mark through pub/sub: who receives it has received all events up to the id that it names.
--
-- KEYS[1] the clock
-- ARGV[1] the Redis pub/sub channel of the asking worker
-- ARGV[2] a token
-- The mark is '<token> <id> <born>'; an emptied data set has '0-0' for both.

local clock = redis.call('HMGET', KEYS[1], 'id', 'born')
return redis.call('PUBLISH', ARGV[1], ARGV[2] .. ' ' .. (clock[1] or '0-0') .. ' ' .. (clock[2] or '0-0'))
