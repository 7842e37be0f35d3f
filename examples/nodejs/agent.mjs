// A support agent in Node.js without packages: gspo-train starts it once for each conversation, in a fresh folder.
import { readFileSync } from "node:fs";

const { OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL } = process.env;
const row = JSON.parse(readFileSync("problem.json", "utf8")).metadata;
const orders = new Map(row.orders.map(([id, item, status]) => [id, { item, status }]));
const order = { type: "string", description: "number of the order" };
const parameters = { type: "object", properties: { order }, required: ["order"] };
const tools = [["get_order", "Look up an order"], ["refund_order", "Pay an order back"]].map(
  ([name, description]) => ({ type: "function", function: { name, description, parameters } }));
const shown = (question, name, id, result, reply) => [
  { role: "user", content: question },
  { role: "assistant", tool_calls: [{ id: name, type: "function", function: { name, arguments: JSON.stringify({ order: id }) } }] },
  { role: "tool", tool_call_id: name, content: result },
  { role: "assistant", content: reply }];
const messages = [
  { role: "system", content: "You work for a shop. Use a tool, then tell the customer in a short sentence what it said." },
  ...shown("Where is order 512?", "get_order", "512", "order 512: sofa, shipped", "Your order 512 is shipped."),
  ...shown("Please pay order 733 back.", "refund_order", "733", "order 733: refunded", "Your order 733 is refunded."),
  { role: "user", content: row.prompt }];

function call(name, { order }) {
  const found = orders.get(String(order));
  if (!found) return `error: there is no order ${order}`;
  if (name === "refund_order") found.status = "refunded";
  return `order ${order}: ${name === "refund_order" ? "refunded" : `${found.item}, ${found.status}`}`;
}

let lookedUp = false, reply = "";
for (let turn = 0; turn < 3 && !reply; turn++) {
  const headers = { "Content-Type": "application/json", Authorization: `Bearer ${OPENAI_API_KEY}` };
  const body = JSON.stringify({ model: OPENAI_MODEL, messages, tools });
  const response = await fetch(`${OPENAI_BASE_URL}/chat/completions`, { method: "POST", headers, body });
  if (!response.ok) throw new Error(await response.text());
  const { message } = (await response.json()).choices[0];
  messages.push(message);
  for (const { id, function: asked } of message.tool_calls ?? []) {
    const content = call(asked.name, JSON.parse(asked.arguments));
    lookedUp ||= !content.startsWith("error");
    messages.push({ role: "tool", tool_call_id: id, content });
  }
  if (!message.tool_calls) reply = message.content || "-";
}
const right = lookedUp && row.orders_after.every(([id, , status]) => orders.get(id).status === status);
const told = reply.toLowerCase().includes(row.told);
console.log(JSON.stringify({ reward: 0.6 * right + 0.4 * (right && told) }));
