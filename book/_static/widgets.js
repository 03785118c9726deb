// The widgets hand their labels to MathJax 2's queue, which MathJax 3 does not have. Labels are plain text here.
addEventListener("DOMContentLoaded", () => {
  if (window.MathJax) MathJax.Hub = { Queue() {} };
});
