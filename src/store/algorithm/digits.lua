-- The text of a whole number, for a command. Redis would make it too, before 7.2 by way of seventeen digits of a fraction, which
-- costs as much as the command: where that is seldom, it may. Counters of a batch often need the same one, one after the other.
local last, last_digits
local function digits(number)
  if number ~= last then last, last_digits = number, string.format('%d', number) end
  return last_digits
end
