-- Whole numbers as commands' arguments. Of a number Redis would make it by itself, before 7.2 by way of seventeen digits of a
-- fraction, which costs as much as the command. Counters of a batch often need the same one, one after the other.
local last, last_digits
local function digits(number)
  if number ~= last then last, last_digits = number, string.format('%d', number) end
  return last_digits
end
